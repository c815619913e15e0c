"""Gradio's own client on the page of `callboard web --gradio`: whole and streamed; prints what came as JSON."""

from __future__ import annotations

import json
import sys

from gradio_client import Client


def main() -> None:
    url, model = sys.argv[1:]
    client = Client(url, verbose=False)
    settings = (model, 0, 12)
    job = client.submit("hello", *settings, api_name="/chat")
    text = job.result(timeout=60)
    grown = job.outputs()
    second = client.predict("again", *settings, api_name="/chat")
    print(json.dumps({"text": text, "grown": grown, "second": second}))


main()
