/* Ask for a cache line ahead of need, into the second level: the first has few places for lines that
   are under way, and who asks waits for one. The empty statement keeps the compiler from taking a
   function that does nothing but ask for one without effect, whose calls may be left out. */
#ifndef MKV_PREFETCH_H
#define MKV_PREFETCH_H
#define MKV_PREFETCH(address) do { __builtin_prefetch(address, 0, 2); __asm__ volatile(""); } while (0)
/* The same for what is read once. */
#define MKV_PREFETCH_ONCE(address) \
    do { __builtin_prefetch(address, 0, 0); __asm__ volatile(""); } while (0)
#endif
