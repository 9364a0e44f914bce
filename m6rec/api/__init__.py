"""Text in, text out: runs as a recommender for anybody's history. Knows no file format of a dataset and no screen."""

from m6rec.api.recommender import Recommender, load
from m6rec.api.talking import Reply
from m6rec.api.writing import Creation, Explanation, Filled
from m6rec.requests import Recommendation

__all__ = ["Creation", "Explanation", "Filled", "Recommendation", "Recommender", "Reply", "load"]
