"""The git protocol without I/O: bytes in, values out, and back.

pktline frames; names says what is valid; requests and refs are the values that
both dialects of the protocol become. fetch_lines collects the lines of a fetch; v2
is the server's side of protocol version 2, v2_client and fetch_reader the client's.
"""
