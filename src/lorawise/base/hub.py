"""What the model hub answers to a name, as errors that say what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from lorawise.base.errors import ModelError


@contextmanager
def hub_refusals(name: str) -> Iterator[None]:
    """`ModelError` for a name that is no id, a gated model, one that is unknown. Failed connections pass through."""
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        yield
    except HFValidationError as problem:
        raise ModelError(f"'{name}' is neither a file, a folder nor a hub id", cure=str(problem)) from None
    except GatedRepoError:
        raise ModelError(
            f"{name} is gated, and this machine's hub account may not read it",
            expected="its terms accepted on the model's page",
            cure="accept them there, then `hf auth login`; or give a folder that holds it",
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"the model hub knows no '{name}' that this machine may read",
            expected="organisation/name, a folder or a .gguf file",
            cure="check the spelling; for a private model, `hf auth login`",
        ) from None
