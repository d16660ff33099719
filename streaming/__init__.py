"""From events to committed parameters: messages, decision token, reward contract, log, store, learner."""

import bandits  # noqa: F401 - it says where the kernels of this package are kept, too
