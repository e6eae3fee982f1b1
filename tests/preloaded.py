"""What the process that forks commands under test has read before: see `commands`."""

import gc

from tests import no_power_cuts, short_samples  # noqa: F401
from tests.kept_corpora import MOST_USED

from agfl_models.huggingface.folder import transformers_library

MOST_USED.load()
_ = transformers_library().LlamaForCausalLM  # four seconds, once instead of at each node
# Else the first collection in each child would write to all pages that it shares with the others.
gc.collect()
gc.freeze()
