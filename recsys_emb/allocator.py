"""Memory as the system hands it out."""

from __future__ import annotations

import ctypes
import mmap
import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
HUGE_PAGE, LARGE = 2 << 20, 32 << 20


def keep_freed_memory() -> None:
    """Keeps freed memory for the next step, in this process from now on; does nothing without glibc.

    By default glibc returns every large array to the system when it is freed and faults it in again next step.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


def huge_pages(tensor: Tensor) -> Tensor:
    """Asks for pages of 2 MB under a large tensor on the CPU, and gives it back; before its first write.

    Rows met at random otherwise miss the processor's cache of page addresses each time, which doubles what they cost.
    A hint: where the system has no such pages nothing changes.
    """
    if tensor.device.type == "cpu" and tensor.nbytes >= LARGE and hasattr(mmap, "MADV_HUGEPAGE"):
        start = -(-tensor.data_ptr() // HUGE_PAGE) * HUGE_PAGE
        end = (tensor.data_ptr() + tensor.nbytes) // HUGE_PAGE * HUGE_PAGE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_HUGEPAGE)
    return tensor
