"""Download a source archive with pip, without running anything in it.

`pip download` runs a source archive's set-up code to learn its metadata. This does what pip does before that, with
pip's own index, proxy and certificate settings. Run as a script, in a process of its own:

    python pip_sdist.py NAME VERSION FOLDER
"""

from __future__ import annotations

import sys


def main(name: str, version: str, folder: str) -> int:
    """Put NAME's source archive of exactly that version into a folder; 1 if there is none."""
    from pip._internal.commands import create_command
    from pip._internal.network.download import Downloader

    command = create_command("download", isolated=False)
    options, _ = command.parse_args([f"--no-binary={name}", "--no-deps", f"{name}=={version}"])
    with command.main_context():
        session = command.get_default_session(options)  # type: ignore[attr-defined]
        finder = command._build_package_finder(options=options, session=session)  # type: ignore[attr-defined]
        found = [c for c in finder.find_all_candidates(name) if str(c.version) == version and not c.link.is_wheel]
        if not found:
            print(f"no source archive of {name} {version} was found", file=sys.stderr)
            return 1
        Downloader(session, "off")(found[0].link, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
