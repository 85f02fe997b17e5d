"""`python -m hf_efficient.video.export FOLDER out.mp4`: play an exported bundle without torch."""

from .player import main

if __name__ == "__main__":
    raise SystemExit(main())
