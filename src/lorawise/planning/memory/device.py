"""What a device takes beside the tensors: cuBLAS's workspace and the CUDA context."""

MIB = 2**20

# torch's default CUBLAS_WORKSPACE_CONFIG (aten/src/ATen/cuda/CUDABlas.cpp): `:4096:2:16:8` before Hopper (8.125 MiB),
# `:4096:8` from Hopper on; one for the thread that goes forward, one for autograd's, since each has a cuBLAS handle of
# its own. Both were seen on an A100, in published peaks that are otherwise met to the megabyte.
THREADS = 2
AMPERE_WORKSPACE = (2 * 4096 + 8 * 16) * 1024
HOPPER_WORKSPACE = 8 * 4096 * 1024
_HOPPER = ("h100", "h200", "h800", "gh200", "b100", "b200", "b300", "gb200", "hopper", "blackwell")

# CUDA's own share: kernels, stacks, the driver's tables. It grows with the card and the libraries that are loaded;
# 300 to 600 MiB is what nvidia-smi shows beside torch's reserved memory on recent cards. Not measured by us.
CONTEXT = 500 * MIB


def cublas_workspace(device: str) -> int:
    """Bytes that the first products, forward and backward, take and keep; 0 where there is no CUDA."""
    name = device.lower()
    if name in ("cpu", "mps"):
        return 0
    return THREADS * (HOPPER_WORKSPACE if any(card in name for card in _HOPPER) else AMPERE_WORKSPACE)


def context_bytes(device: str) -> int:
    """About what the CUDA context takes; 0 where there is none."""
    return 0 if device.lower() in ("cpu", "mps") else CONTEXT
