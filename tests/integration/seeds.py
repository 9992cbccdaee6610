"""What a run repeats by, and how long it is."""
import os

SEED = int(os.environ.get("SEMKV_TEST_SEED", "11"))
SOAK = int(os.environ.get("SEMKV_SOAK", "1"))
