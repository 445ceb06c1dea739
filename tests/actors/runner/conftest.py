import json

import pytest

from tests.actors.runner.engines import save_several
from tests.checkpoints import save_model


@pytest.fixture
def edit():
    """A function that changes fields of a model folder's config.json; None takes a field out."""

    def change(folder, **fields):
        path = folder / "config.json"
        values = json.loads(path.read_text()) | fields
        path.write_text(
            json.dumps({key: value for key, value in values.items() if value is not None})
        )
        return folder

    return change


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A small model's folder."""
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, "llama")
    return folder


@pytest.fixture(scope="session")
def paths(model, tmp_path_factory):
    """Adapters of several ranks, one on few modules, and one whose products are infinite."""
    folder = tmp_path_factory.mktemp("adapters")
    kinds = {
        "wide": {"rank": 32},
        "narrow": {"rank": 3},
        "few": {"modules": ("q_proj", "down_proj")},
        "other": {},
        "huge": {"size": 1e30},
    }
    return save_several(folder, model, kinds)


@pytest.fixture
def saved(tmp_path):
    """A function that saves a tiny model and returns its folder."""

    def save(architecture="llama", **options):
        save_model(tmp_path / "model", architecture, **options)
        return tmp_path / "model"

    return save
