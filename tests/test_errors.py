import inspect
import pickle

import pytest

from m6rec import errors
from m6rec.errors import M6RecError, MissingExtraError, RowError, UnknownNameError, nearest


def test_the_drawn_tree_is_the_tree():
    classes = {
        value.__name__ for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, M6RecError)
    }
    assert all(name in errors.__doc__ for name in classes)
    drawn = {word for word in errors.__doc__.replace("─", " ").split() if word.endswith("Error")}
    assert drawn == classes


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UnknownNameError("tuner", "lorra", ["prompt", "lora"]), "unknown tuner 'lorra'; did you mean lora?"),
        (RowError("log.csv", 3, "time", "got 'x', expected a number"), "log.csv, row 3, field 'time': got 'x'"),
        (MissingExtraError("faiss", "index"), 'pip install "m6rec[index]"'),
    ],
)
def test_messages_say_what_to_do_and_survive_a_worker_process(error, words):
    assert words in str(error)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - made one line above
    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))


@pytest.mark.parametrize(
    ("name", "known", "tail"),
    [
        ("lorra", ["prompt", "lora"], "; did you mean lora? (known: lora, prompt)"),
        ("LoRA", ["prompt", "lora"], "; did you mean lora? (known: lora, prompt)"),
        ("xyz", ["prompt", "lora"], "; (known: lora, prompt)"),
        ("lora", [], "; none is known"),
        (3, ["3d"], "; did you mean 3d? (known: 3d)"),
        ("als", ["ALS", "als2"], "; did you mean ALS or als2? (known: ALS, als2)"),
    ],
)
def test_nearest(name, known, tail):
    assert nearest(name, known) == tail
