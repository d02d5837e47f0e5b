"""The git protocol without I/O: bytes in, values out, and back.

pktline frames; requests and refs are the values that both dialects of the
protocol become; v2 reads and writes protocol version 2.
"""
