"""Serve a finished run as a teacher, for students elsewhere that name it as ``remote:http://HOST:PORT``.

python scripts/serve_teacher.py RUN [--host 0.0.0.0] [--port 8100] [--data DIR] [--precision auto]

Whoever reaches the port may ask: give it to your own network only.
"""

import argparse
import contextlib
import sys

from m6rec.distillation.service import TeacherServer
from m6rec.errors import M6RecError
from m6rec.workflows.distilling import open_teacher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--host", default="127.0.0.1", help="interface to listen on; 0.0.0.0 = all")
    parser.add_argument("--port", type=int, default=8100, help="0 = any that is free")
    parser.add_argument("--data", help="dataset folder, which a retriever needs, if it has moved")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    words = parser.parse_args()
    try:
        teacher = open_teacher(words.run, words.data, words.precision)
        server = TeacherServer(teacher, words.host, words.port)
    except (M6RecError, OSError) as error:
        sys.exit(f"error: {error}")
    with server, contextlib.suppress(KeyboardInterrupt):
        print(f"{words.run}, version {teacher.card.version}: remote:{server.url}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
