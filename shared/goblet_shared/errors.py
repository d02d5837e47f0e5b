"""The root of every error Goblet raises on purpose."""


class GobletError(Exception):
    """An error whose text is one sentence for the person who made the request.

    `status` is the HTTP status that fits when nothing was sent yet. Only the
    `app` modules read it.
    """

    status = 500


class BadRequest(GobletError):
    """The client asked for something that no Goblet will answer; asking again would not help."""

    status = 400
