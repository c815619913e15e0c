"""KServe's v2 protocol (Open Inference Protocol) over HTTP and gRPC, as Triton's clients speak it."""
