"""What several tests of filters need."""

import pytest

from tests import tiny


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request, tmp_path_factory):
    """A causal LM and its tokenizer, for filters that load a language model by folder."""
    root = tmp_path_factory.mktemp(request.param)
    getattr(tiny, request.param)().save_pretrained(root)
    tiny.tokenizer(special=False).save_pretrained(root)
    return str(root)
