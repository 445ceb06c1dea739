import pytest

from tests.actors import made_tokenizers
from weft.actors.tokenizer.text_model import TextModel
from weft.runtime.config import Config


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return made_tokenizers.save("byte_level", tmp_path_factory.mktemp("sim"))


@pytest.fixture(scope="session")
def model(folder):
    return TextModel.load(Config(model=str(folder), max_model_len=128))
