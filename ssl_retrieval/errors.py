"""The two kinds of mistake that are not ours."""


class UserError(ValueError):
    """A mistake in what the user gave: one clear line that says what, where and what to do.

    The command line prints the text without a traceback and exits with status 2. Any other exception
    is our own failure and exits with status 1.
    """


class ImageError(ValueError):
    """An image file that cannot be decoded; the text is the reason, without the path."""
