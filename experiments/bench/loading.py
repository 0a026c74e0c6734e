"""Loading: `LM.from_pretrained` beside `AutoModelForCausalLM.from_pretrained` on the same folder, taking turns.

editlab reads the tokenizer and finds the model's structure at their first use, as transformers maps the weights; the
third line has both done.
"""

from __future__ import annotations

from common import beside, interleaved, options_of, parse, report, write
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from editlab import LM
from editlab.models.load import find_folder


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    options = parse(parser)
    logging.disable_progress_bar()
    folder, _ = find_folder(options.model)

    def ready() -> object:
        lm = LM.from_pretrained(folder)
        return lm.adapter, lm.tokenizer

    seconds = interleaved(
        {
            "transformers": lambda: AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
            "editlab": lambda: LM.from_pretrained(folder),
            "editlab, ready": ready,
        },
        options.rounds,
    )
    why = "it is transformers, and the files are checked"
    row = beside("the model loaded", seconds, "editlab", "transformers", why=why)
    write("loading", report(seconds, "transformers"), [row])


if __name__ == "__main__":
    main()
