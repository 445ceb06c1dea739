import json

import pytest

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


@pytest.fixture
def saved(tmp_path):
    """A function that saves a tiny model and returns its folder."""

    def save(architecture="llama", **options):
        save_model(tmp_path / "model", architecture, **options)
        return tmp_path / "model"

    return save
