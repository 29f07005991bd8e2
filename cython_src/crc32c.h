/* CRC-32C (Castagnoli, RFC 3720 B.4): CRC instructions where the machine has them, else tables.
 *
 * All functions but crc32c_* at the end work on the raw register: what stands there before the
 * final inversion. On the register the checksum is linear, so that three lanes of a block can be
 * taken at once (an instruction takes 3 cycles, but one can start in each) and joined afterwards:
 * the register after A then B is that of A moved on over |B| zero bytes, XOR that of B alone.
 *
 * crc32c_setup must have run first. Included by _checksum.pyx alone.
 */
#ifndef MONOLITH_KV_CRC32C_H
#define MONOLITH_KV_CRC32C_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define CRC32C_POLYNOMIAL 0x82F63B78u /* bits reversed */
#define CRC32C_LANE_LONG 2048         /* For blocks: joining the lanes costs 1 % of reading them. */
#define CRC32C_LANE_SHORT 128         /* For rows: 3 lanes of it are a row of 64 floats and state. */

typedef uint32_t (*crc32c_function)(uint32_t, const uint8_t *, size_t);

static uint32_t crc32c_tables[8][256];
static uint32_t crc32c_move_long[4][256];
static uint32_t crc32c_move_short[4][256];
static crc32c_function crc32c_best;

static inline uint64_t crc32c_load(const uint8_t *data)
{
    /* Compilers make one load of it where that is right. */
    return (uint64_t)data[0] | (uint64_t)data[1] << 8 | (uint64_t)data[2] << 16 |
           (uint64_t)data[3] << 24 | (uint64_t)data[4] << 32 | (uint64_t)data[5] << 40 |
           (uint64_t)data[6] << 48 | (uint64_t)data[7] << 56;
}

/* Eight bytes at a time, a table for each (Kounavis, Berry 2008). */
static uint32_t crc32c_by_tables(uint32_t crc, const uint8_t *data, size_t n)
{
    for (; n >= 8; n -= 8, data += 8) {
        uint64_t word = crc32c_load(data) ^ crc;
        crc = crc32c_tables[7][word & 255] ^ crc32c_tables[6][word >> 8 & 255] ^
              crc32c_tables[5][word >> 16 & 255] ^ crc32c_tables[4][word >> 24 & 255] ^
              crc32c_tables[3][word >> 32 & 255] ^ crc32c_tables[2][word >> 40 & 255] ^
              crc32c_tables[1][word >> 48 & 255] ^ crc32c_tables[0][word >> 56];
    }
    for (; n > 0; n--, data++)
        crc = crc32c_tables[0][(crc ^ *data) & 255] ^ crc >> 8;
    return crc;
}

#if defined(__x86_64__) && defined(__GNUC__)
#define CRC32C_TARGET __attribute__((target("sse4.2")))
#define CRC32C_WORD(crc, word) ((uint32_t)__builtin_ia32_crc32di((crc), (word)))
#define CRC32C_BYTE(crc, byte) __builtin_ia32_crc32qi((crc), (byte))
static int crc32c_has_instruction(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("sse4.2");
}
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
/* Only where the compiler may use them everywhere, as on Apple's and with -march=armv8-a+crc. */
#include <arm_acle.h>
#define CRC32C_TARGET
#define CRC32C_WORD(crc, word) __crc32cd((crc), (word))
#define CRC32C_BYTE(crc, byte) __crc32cb((crc), (byte))
static int crc32c_has_instruction(void) { return 1; }
#endif

#ifdef CRC32C_TARGET

static inline uint32_t crc32c_move(const uint32_t table[4][256], uint32_t crc)
{
    return table[0][crc & 255] ^ table[1][crc >> 8 & 255] ^ table[2][crc >> 16 & 255] ^
           table[3][crc >> 24];
}

/* As much as fits in whole triples of lanes; moves *data and *n on. */
CRC32C_TARGET static uint32_t crc32c_by_lanes(uint32_t crc, const uint8_t **data, size_t *n,
                                              size_t lane, const uint32_t move[4][256])
{
    while (*n >= 3 * lane) {
        const uint8_t *at = *data, *end = at + lane;
        uint32_t second = 0, third = 0;
        for (; at < end; at += 8) {
            crc = CRC32C_WORD(crc, crc32c_load(at));
            second = CRC32C_WORD(second, crc32c_load(at + lane));
            third = CRC32C_WORD(third, crc32c_load(at + 2 * lane));
        }
        crc = crc32c_move(move, crc) ^ second;
        crc = crc32c_move(move, crc) ^ third;
        *data += 3 * lane;
        *n -= 3 * lane;
    }
    return crc;
}

CRC32C_TARGET static uint32_t crc32c_by_instruction(uint32_t crc, const uint8_t *data, size_t n)
{
    crc = crc32c_by_lanes(crc, &data, &n, CRC32C_LANE_LONG, crc32c_move_long);
    crc = crc32c_by_lanes(crc, &data, &n, CRC32C_LANE_SHORT, crc32c_move_short);
    for (; n >= 8; n -= 8, data += 8)
        crc = CRC32C_WORD(crc, crc32c_load(data));
    for (; n > 0; n--, data++)
        crc = CRC32C_BYTE(crc, *data);
    return crc;
}

/* Fill a table that moves a register on over `zeros` zero bytes. */
static void crc32c_fill_move(uint32_t table[4][256], size_t zeros)
{
    for (int byte = 0; byte < 4; byte++) {
        table[byte][0] = 0;
        for (int value = 1; value < 256; value++) {
            int rest = value & (value - 1); /* without the lowest bit */
            uint32_t crc = (uint32_t)(value ^ rest) << (8 * byte);
            if (rest != 0) {
                table[byte][value] = table[byte][rest] ^ table[byte][value ^ rest];
                continue;
            }
            for (size_t i = 0; i < zeros; i++)
                crc = crc32c_tables[0][crc & 255] ^ crc >> 8;
            table[byte][value] = crc;
        }
    }
}

#endif /* CRC32C_TARGET */

static void crc32c_setup(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc & 1) ? crc >> 1 ^ CRC32C_POLYNOMIAL : crc >> 1;
        crc32c_tables[0][byte] = crc;
    }
    for (int table = 1; table < 8; table++)
        for (int byte = 0; byte < 256; byte++) {
            uint32_t crc = crc32c_tables[table - 1][byte];
            crc32c_tables[table][byte] = crc32c_tables[0][crc & 255] ^ crc >> 8;
        }
    crc32c_best = crc32c_by_tables;
#ifdef CRC32C_TARGET
    crc32c_fill_move(crc32c_move_long, CRC32C_LANE_LONG);
    crc32c_fill_move(crc32c_move_short, CRC32C_LANE_SHORT);
    if (crc32c_has_instruction())
        crc32c_best = crc32c_by_instruction;
#endif
}

static inline uint32_t crc32c_extend(uint32_t crc, const uint8_t *data, size_t n)
{
    return ~crc32c_best(~crc, data, n);
}

static inline uint32_t crc32c_extend_by_tables(uint32_t crc, const uint8_t *data, size_t n)
{
    return ~crc32c_by_tables(~crc, data, n);
}

#endif
