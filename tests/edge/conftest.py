from tests.tasks.conftest import make

__all__ = ["make"]
