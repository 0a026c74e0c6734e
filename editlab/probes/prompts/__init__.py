"""Probes that need prompts and nothing else, one a file.

A file here has a `Config` (an `editlab.config.MethodConfig`) and

    run(lm, prompts, config, on_step) -> editlab.probes.result.ProbeResult

and is then in `editlab ls probes`, `editlab probe`, `lm.probe`, the app's Probe page and the conformance tests. Another
package can offer one under the entry-point group `editlab.probes`.
"""
