/* Counts that are read while someone else writes them. Relaxed: they order nothing, and a store or a
   load is one plain instruction. What belongs together is guarded by a lock. */
#ifndef MKV_ATOMICS_H
#define MKV_ATOMICS_H
#define MKV_LOAD64(place) __atomic_load_n(place, __ATOMIC_RELAXED)
#define MKV_STORE64(place, value) __atomic_store_n(place, value, __ATOMIC_RELAXED)
#define MKV_ADD64(place, value) __atomic_fetch_add(place, value, __ATOMIC_RELAXED)
#define MKV_SWAP64(place, seen, value) __atomic_compare_exchange_n( \
    place, seen, value, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)
#define MKV_STORE(place, value) __atomic_store_n(place, value, __ATOMIC_RELAXED)
/* What several threads take from, a bit each: what it was before. */
#define MKV_CLEAR32(place, bits) __atomic_fetch_and(place, ~(bits), __ATOMIC_RELAXED)
#define MKV_SET32(place, bits) __atomic_fetch_or(place, bits, __ATOMIC_RELAXED)
#endif
