"""Who asks (callers), and whether they may read what they ask for (check)."""
