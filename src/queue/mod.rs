//! The NFQUEUE worker: moves packets between the kernel and the engine.
