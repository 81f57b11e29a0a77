#include "row_kernel.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "frames.h"

#define TARGET __attribute__((target("pclmul,sse4.1")))
#define PRIMITIVE static inline TARGET __attribute__((always_inline))

typedef __m128i block;

PRIMITIVE block load(const unsigned char *p) { return _mm_loadu_si128((const __m128i *)(const void *)p); }
PRIMITIVE void store(unsigned char *p, block b) { _mm_storeu_si128((__m128i *)(void *)p, b); }
PRIMITIVE block from_words(uint64_t low, uint64_t high) { return _mm_set_epi64x((long long)high, (long long)low); }
PRIMITIVE uint64_t low_word(block b) { return (uint64_t)_mm_cvtsi128_si64(b); }
PRIMITIVE uint64_t high_word(block b) { return (uint64_t)_mm_extract_epi64(b, 1); }
PRIMITIVE block add(block a, block b) { return _mm_xor_si128(a, b); }
PRIMITIVE block swap(block b) { return _mm_shuffle_epi32(b, 0x4e); }
PRIMITIVE block mul_low(block a, block b) { return _mm_clmulepi64_si128(a, b, 0x00); }
PRIMITIVE block mul_high(block a, block b) { return _mm_clmulepi64_si128(a, b, 0x11); }

PRIMITIVE block reverse(block b)
{
    return _mm_shuffle_epi8(b, _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}

PRIMITIVE block mul_cross(block a, block b)
{
    return _mm_xor_si128(_mm_clmulepi64_si128(a, b, 0x01), _mm_clmulepi64_si128(a, b, 0x10));
}

#include "row_blocks.h"

static int supported(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
}

const row_kernel row_kernel_pclmul = {
    .name = "pclmul",
    .max_size = 416,
    .supported = supported,
    .init = kernel_init,
    .absorb = kernel_absorb,
    .counters = kernel_counters,
    .seal = kernel_seal,
    .open = kernel_open,
};

#endif
