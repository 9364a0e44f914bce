"""Several runs behind one recommender, and which of them does what. Knows no request."""

from collections.abc import Sequence

from m6rec.assemble import Run
from m6rec.coldstart.users import ColdUsers
from m6rec.errors import RunError, UnknownNameError
from m6rec.tasks.conversation.task import Conversation
from m6rec.tasks.generation.task import Generation
from m6rec.tasks.pretraining.task import Pretraining
from m6rec.tasks.ranking.task import Ranking
from m6rec.tasks.retrieval.base import Retriever
from m6rec.tasks.zeroshot.task import ZeroShot


class Team:
    """Runs, found by what they were trained to do.

    Args:
        runs: at least one; where two can do the same, the first one does.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = tuple(runs)

    def _first(self, *kinds: type) -> Run | None:
        return next((run for kind in kinds for run in self.runs if isinstance(run.task, kind)), None)

    def _missing(self, what: str, how: str) -> RunError:
        held = ", ".join(f"{run.folder} ({self.work(run)})" for run in self.runs)
        return RunError(f"{what}; got {held}; {how}")

    @staticmethod
    def work(run: Run) -> str:
        """Return what a run does, in a word."""
        return run.task.kind if isinstance(run.task, Generation) else run.task.name

    def retriever(self) -> Run:
        """Return the run that retrieves.

        Raises:
            RunError: none does.
        """
        if (run := self._first(Retriever)) is None:
            raise self._missing(
                "recommending needs a retrieval run", "train one: m6rec train retrieval data=DIR out=RUN"
            )
        return run

    def ranker(self) -> Run:
        """Return the run that ranks candidates: a trained ranker, one for new users, or a language model's likelihood.

        Raises:
            RunError: none does.
        """
        if (run := self._first(Ranking, ColdUsers, ZeroShot)) is None:
            raise self._missing("ranking needs a ranking run", "give one: m6rec.load(RUN, RANKING_RUN)")
        return run

    @property
    def can_rank(self) -> bool:
        """Whether a run was trained to rank."""
        return self._first(Ranking, ColdUsers) is not None

    @property
    def ranks_everything(self) -> bool:
        """Whether the ranker reads no words at a request, so that it can order a whole catalogue."""
        return self.can_rank and isinstance(self.ranker().task, ColdUsers)

    @property
    def can_retrieve(self) -> bool:
        """Whether a run retrieves."""
        return self._first(Retriever) is not None

    def writer(self, kind: str) -> Run:
        """Return the run that writes a kind of text.

        Raises:
            UnknownNameError: no run writes this kind, and no prompt is called so.
            RunError: no run writes this kind.
        """
        writers = {self.work(run): run for run in reversed(self.runs) if isinstance(run.task, Generation)}
        if kind in writers:
            return writers[kind]
        if writers:
            raise UnknownNameError("kind of text", kind, writers)
        raise self._missing(
            f"no run writes the kind of text {kind!r}",
            f"train one and give it beside: m6rec train {kind} data=DIR out=RUN2; m6rec.load(RUN, RUN2)",
        )

    def talker(self) -> Run:
        """Return the run that holds conversations.

        Raises:
            RunError: none does.
        """
        if (run := self._first(Conversation)) is None:
            raise self._missing(
                "a conversation needs a conversation run", "train one: m6rec train conversation data=DIR out=RUN"
            )
        return run

    def speaker(self) -> Run:
        """Return the run whose language model fills blanks: one that was trained to write, else one that can.

        Raises:
            RunError: all stand on an encoder that was never trained to write.
        """
        if (run := self._speaker()) is None:
            raise self._missing(
                "writing needs a run that was trained to write, for an encoder's head is not",
                "train one: m6rec train title data=DIR out=RUN",
            )
        return run

    @property
    def can_speak(self) -> bool:
        """Whether a run's language model fills blanks."""
        return self._speaker() is not None

    def _speaker(self) -> Run | None:
        run = self._first(Pretraining, Generation, ZeroShot)
        return run or next((run for run in self.runs if run.backbone.family in ("causal", "seq2seq")), None)
