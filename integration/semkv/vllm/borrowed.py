"""A group whose attention reads vLLM's own KV cache, where that holds plain rows: nothing is copied,
vLLM's writer alone writes."""
from semkv._abi import SemkvError, check, ffi, lib
from semkv.vllm import layouts
from semkv.vllm.group import Group


class BorrowedGroup(Group):
    borrows = 1

    def __init__(self, kv_cache_spec, layers, left, vllm_config):
        super().__init__(kv_cache_spec, layers, left, vllm_config)
        self._rows = [None] * len(layers)  # layer -> keys and values, which keeps their memory
        self._addresses = [None] * len(layers)
        self._is_checked = [False] * len(layers)
        if self.off is not None:
            return
        self._geometry = layouts.Geometry(self._block_tokens, self._num_kv_heads, self._head_dim,
                                          self._dtype)
        # Of the whole model, and decode rows have it too; no attention layer says so.
        window = getattr(vllm_config.model_config, "rswa_window", None)
        if window is not None:
            self.turn_off(f"reference sliding window of {window} tokens")
            return
        try:
            self._dims = layouts.find_dims(
                layouts.stated_shape(layers[0].attn_backend, kv_cache_spec), self._geometry)
        except layouts.LayoutError as error:
            self.turn_off(str(error))

    def note_written(self, index, key, value, slot_mapping, kv_cache):
        """vLLM has written a step's tokens of one layer into `kv_cache`, which is borrowed when the
        layer is first written and must stay where it is. key, value: what was written."""
        if self.off is not None or kv_cache.numel() == 0:
            return
        try:
            if self._context is None:
                self._start(kv_cache.shape[self._dims.block])
            if self._rows[index] is None:
                self._borrow(index, kv_cache)
            elif self._addresses[index] != kv_cache.data_ptr():
                raise layouts.LayoutError(
                    f"the KV cache of layer {index} was at {self._addresses[index]:#x}, is at "
                    f"{kv_cache.data_ptr():#x}")
            if not self._is_checked[index] and bool((slot_mapping >= 0).any()):
                layouts.check_written(*self._rows[index], key, value, slot_mapping)
                self._is_checked[index] = True
        except (SemkvError, layouts.LayoutError) as error:
            self.turn_off(str(error))

    def write(self, index, key, value):
        """Nothing: vLLM's writer has written them."""

    def _describe_write(self, key, value):
        return ffi.NULL

    def _sampled(self, kv_cache):
        return self._rows[0][0].transpose(1, 2)

    def _borrow(self, index, kv_cache):
        keys, values = layouts.rows_of(kv_cache, self._dims, self._geometry)
        check(lib.semkv_register_kv(self._context, layouts.kv_view(index, keys, values)))
        self._rows[index] = keys, values
        self._addresses[index] = kv_cache.data_ptr()
