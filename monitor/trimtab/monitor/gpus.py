"""NVML's view of this host's GPUs."""

from typing import Any

from trimtab.core.events import GpuSampled


class GpuSampler:
    """Samples every GPU of this host; without an NVIDIA driver it samples nothing.

    Args:
        host: The name the samples carry.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._nvml: Any = None
        self.unavailable_reason = ""
        """Why there are no samples; empty where there are."""
        try:
            import pynvml
        except ImportError:
            self.unavailable_reason = (
                "no GPU samples: the package nvidia-ml-py is not installed; "
                "pip install 'trimtab[monitor]'"
            )
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self.unavailable_reason = f"no GPU samples: no NVIDIA driver answers ({error})"
            return
        self._nvml = pynvml

    def sample(self, now_s: float) -> tuple[GpuSampled, ...]:
        """One event for each GPU that answers; a figure the GPU does not know is 0."""
        if self._nvml is None:
            return ()
        try:
            count = self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError:
            return ()  # the driver went away; samples must never end a run
        samples = (self._sample_one(index, now_s=now_s) for index in range(count))
        return tuple(sample for sample in samples if sample is not None)

    def close(self) -> None:
        """Let go of the driver; closing twice does nothing."""
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None

    def _sample_one(self, index: int, *, now_s: float) -> GpuSampled | None:
        nvml = self._nvml
        try:
            gpu = nvml.nvmlDeviceGetHandleByIndex(index)
            name = nvml.nvmlDeviceGetName(gpu)
            used_bytes = int(nvml.nvmlDeviceGetMemoryInfo(gpu).used)
        except nvml.NVMLError:
            return None  # a GPU that fell off the bus must not end the others' samples
        return GpuSampled(
            time_s=now_s,
            host=self._host,
            index=index,
            name=name,
            utilization_fraction=self._or_zero(self._utilization, gpu),
            memory_used_bytes=used_bytes,
            power_w=self._or_zero(self._power_w, gpu),
            temperature_c=self._or_zero(self._temperature_c, gpu),
        )

    def _or_zero(self, read: Any, gpu: Any) -> float:
        try:
            return float(read(gpu))
        except self._nvml.NVMLError:
            return 0.0

    def _utilization(self, gpu: Any) -> float:
        """NVML gives percent of the last sample period with a kernel running."""
        return float(self._nvml.nvmlDeviceGetUtilizationRates(gpu).gpu) / 100

    def _power_w(self, gpu: Any) -> float:
        """NVML gives milliwatts."""
        return float(self._nvml.nvmlDeviceGetPowerUsage(gpu)) / 1_000

    def _temperature_c(self, gpu: Any) -> float:
        sensor = self._nvml.NVML_TEMPERATURE_GPU
        return float(self._nvml.nvmlDeviceGetTemperature(gpu, sensor))
