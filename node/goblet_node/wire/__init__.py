"""The git protocol without I/O: bytes in, values out, and back.

pktline frames; names says what is valid; requests and refs are the values that
both dialects of the protocol become, filters one part of them. fetch_lines collects
the lines of a fetch; v2 and v0 are the server's side of the two dialects, answers
how each says what it has to; v2_client and fetch_reader are the client's side.
"""
