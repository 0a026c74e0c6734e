"""Studies of memory: train a private copy, or edit it, and ask the probes of `editlab.probes.memory` as it goes on."""
