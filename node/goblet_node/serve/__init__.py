"""From a Fetch and what the mirror holds to the bytes of an answer.

plan decides, from the facts that look finds. A verbatim answer is segments as they
lie (verbatim); a selected one is found in a worker process (selection): negotiate
says what is told before the pack and ready when a client may stop asking, shallow
where history is cut off, need which objects go (walk and trees find them), emit
which bytes of the log those are (heads are what changes of them). pieces reads the
bytes. answer acts on a plan, sending and reply write what is sent, and alive breaks
the silence of long work.
"""
