"""A pytest plugin: nbval starts a kernel again that dies before its first reply."""

from functools import partial

import nbval.kernel

from toolkit.press.reader import in_a_kernel

nbval.kernel.start_new_kernel = partial(in_a_kernel, nbval.kernel.start_new_kernel)
