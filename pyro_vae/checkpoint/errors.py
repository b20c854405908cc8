"""The error of a file that is not what it should be."""

__all__ = ["CheckpointError", "reason_of"]


class CheckpointError(RuntimeError):
    """A file that cannot be read as the state that was asked for; the message says why.

    Example:
        >>> raise CheckpointError("path must be a file of weights; got notes.txt.")
        Traceback (most recent call last):
        pyro_vae.checkpoint.errors.CheckpointError: path must be a file of weights; got notes.txt.
    """


def reason_of(error: BaseException) -> str:
    """The first line of an error, or its kind where it says nothing.

    Example:
        >>> reason_of(ValueError("no zip file")), reason_of(EOFError())
        ('no zip file', 'EOFError')
    """
    return next(iter(str(error).splitlines()), "") or type(error).__name__
