"""Messages of the Open Inference Protocol v2 over gRPC, generated from open_inference.proto by `make proto`."""
