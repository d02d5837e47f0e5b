"""From a Fetch and what the mirror holds to the bytes of an answer.

plan decides (pure), verbatim reads segments as one pack, answer acts on a plan.
"""
