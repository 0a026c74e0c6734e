"""What a model keeps of texts: read, never trained, here; `editlab.runs.memory` trains and asks these probes."""
