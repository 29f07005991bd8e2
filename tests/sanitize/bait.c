/* One known mistake for each sanitizer: where it is not reported, silence about the rest says
   nothing. Built by run.sh with the flags of the extensions. */
#include <stdlib.h>

int bait_ready, bait_count;

/* Called by two threads, which wait for each other here without ordering anything. */
void bait_race(void)
{
    __atomic_fetch_add(&bait_ready, 1, __ATOMIC_RELAXED);
    while (__atomic_load_n(&bait_ready, __ATOMIC_RELAXED) < 2)
        ;
    bait_count++;
}

int bait_undefined(int value) { return value + 2147483647; }

int bait_overflow(size_t size)
{
    volatile char *data = calloc(size, 1);
    int byte = data[size];
    free((void *)data);
    return byte;
}

void bait_leak(size_t size)
{
    volatile char *data = malloc(size);
    data[0] = 1;
}
