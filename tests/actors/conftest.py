import pytest
from transformers import AutoTokenizer

from tests.actors import made_tokenizers
from weft.actors.tokenizer.text_model import TextModel
from weft.runtime.config import Config


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A function from a kind of tokenizer to the folder of a model that has it."""
    root = tmp_path_factory.mktemp("models")
    return lambda kind: made_tokenizers.save(kind, root)


@pytest.fixture(scope="session")
def text_model(model_folder):
    """A function from a kind of tokenizer to a fresh TextModel."""
    return lambda kind: TextModel.load(Config(model=str(model_folder(kind))))


@pytest.fixture(scope="session")
def reference(model_folder):
    """A function from a kind of tokenizer to what transformers makes of the same folder."""
    return lambda kind: AutoTokenizer.from_pretrained(model_folder(kind))
