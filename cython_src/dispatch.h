/* Loops over floats are compiled once for every machine and again for wider vectors; which one runs
   is decided when the module is loaded. The same source without -ffast-math and with contraction
   off: every copy gives the same bits. */
#ifndef MKV_DISPATCH_H
#define MKV_DISPATCH_H

#if !defined(MKV_WIDE) && defined(__has_attribute) && defined(__x86_64__) && defined(__linux__)
#if __has_attribute(target_clones) && __has_include(<features.h>)
#include <features.h>
/* The C library has to resolve them at load time: glibc does, musl does not. */
#ifdef __GLIBC__
#define MKV_WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#endif
#endif

#ifndef MKV_WIDE
#define MKV_WIDE
#endif

#endif
