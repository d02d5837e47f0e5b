"""From a Fetch and what the mirror holds to the bytes of an answer.

A question is first said as all say it (phrasing), by whose key (recording_key) its answer
is found if it was recorded (recorder, with recordings on the disk, their open_files, and
each production that is under way).

Otherwise plan decides, from the facts that look finds. A verbatim answer is segments as they
lie (whole, verbatim); a selected one (selecting) is found in a worker process
(selection): negotiate says what is told before the pack and ready when a client may
stop asking, shallow where history is cut off, need which objects go (walk finds the commits, alike
what changed), emit which bytes of the log those are (heads and delta are what changes
of them); kept are the logs that a worker has in memory. pieces reads the
bytes. What the mirror cannot answer yet comes from upstream (cold). answer acts on a
plan, sending and reply write what is sent, and alive breaks the silence of long work.
renew makes a worn log anew: a selected answer that becomes a segment.
"""
