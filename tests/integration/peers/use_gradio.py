"""Gradio's own client on the page of `callboard web --gradio`: whole and streamed; prints what came as JSON."""

from __future__ import annotations

import json
import sys

from gradio_client import Client


def main() -> None:
    url, model = sys.argv[1:]
    client = Client(url, verbose=False)
    settings = {"param_2": model, "param_3": 0, "param_4": 12}
    job = client.submit(message="hello", api_name="/chat", **settings)
    text = job.result(timeout=60)
    grown = job.outputs()
    second = client.predict(message="again", api_name="/chat", **settings)
    print(json.dumps({"text": text, "grown": grown, "second": second}))


main()
