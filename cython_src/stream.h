/* Copy a row past the caches: memory that is overwritten whole need not be read first. The lock that
   is released afterwards does not order such stores: mkv_stream_end does. */
#ifndef MKV_STREAM_H
#define MKV_STREAM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>

/* Half-written lines would be read after all: only whole ones are streamed. */
static inline int mkv_streams(const float *target, size_t floats) {
    return (((uintptr_t)target | (floats * sizeof(float))) & 63) == 0;
}

/* A line is read whole before any of it is written: a line that is written in pieces with a miss in
   between goes to memory in pieces. */
static inline void mkv_stream(float *target, const float *source, size_t floats) {
    for (size_t i = 0; i < floats; i += 16) {
        __m128 a = _mm_loadu_ps(source + i), b = _mm_loadu_ps(source + i + 4);
        __m128 c = _mm_loadu_ps(source + i + 8), d = _mm_loadu_ps(source + i + 12);
        _mm_stream_ps(target + i, a);
        _mm_stream_ps(target + i + 4, b);
        _mm_stream_ps(target + i + 8, c);
        _mm_stream_ps(target + i + 12, d);
    }
}

static inline void mkv_stream_end(void) { _mm_sfence(); }
#else
static inline int mkv_streams(const float *target, size_t floats) { return 0; }
static inline void mkv_stream(float *target, const float *source, size_t floats) {
    memcpy(target, source, floats * sizeof(float));
}
static inline void mkv_stream_end(void) {}
#endif

#endif
