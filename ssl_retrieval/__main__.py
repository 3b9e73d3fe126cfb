"""Run the command line as ``python -m ssl_retrieval``."""

from ssl_retrieval.cli import main

main()
