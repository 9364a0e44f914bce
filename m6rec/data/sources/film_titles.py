"""Film titles as catalogues write them: year in brackets, article at the end. Knows no dataset."""

import re

_YEAR = re.compile(r"^(?P<title>.*\S)\s*\((?P<year>\d{4})(?:[-–]\d{0,4})?\)\s*$")
_ARTICLE = re.compile(r"^(?P<name>[^(]+), (?P<article>The|A|An|Les?|La|Das|Der|Die|El|Il)(?P<rest> \(.*)?$")


def split_year(title: str) -> tuple[str, str | None]:
    """Return a title without its year, the article put in front, and the year.

    >>> split_year("Good, the Bad and the Ugly, The (Buono, il brutto, il cattivo, Il) (1966)")
    ('The Good, the Bad and the Ugly (Buono, il brutto, il cattivo, Il)', '1966')
    >>> split_year("Babylon 5")
    ('Babylon 5', None)
    """
    match = _YEAR.match(title)
    name, year = (match["title"], match["year"]) if match else (title.strip(), None)
    article = _ARTICLE.match(name)
    return (f"{article['article']} {article['name']}{article['rest'] or ''}" if article else name), year
