#include "row_kernel.h"

#if defined(__aarch64__) && defined(__ORDER_LITTLE_ENDIAN__)

#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

#include "frames.h"

#define TARGET __attribute__((target("+crypto")))
#define PRIMITIVE static inline TARGET __attribute__((always_inline))

typedef uint64x2_t block;

PRIMITIVE block load(const unsigned char *p) { return vreinterpretq_u64_u8(vld1q_u8(p)); }
PRIMITIVE void store(unsigned char *p, block b) { vst1q_u8(p, vreinterpretq_u8_u64(b)); }
PRIMITIVE block from_words(uint64_t low, uint64_t high) { return vcombine_u64(vcreate_u64(low), vcreate_u64(high)); }
PRIMITIVE uint64_t low_word(block b) { return vgetq_lane_u64(b, 0); }
PRIMITIVE uint64_t high_word(block b) { return vgetq_lane_u64(b, 1); }
PRIMITIVE block add(block a, block b) { return veorq_u64(a, b); }
PRIMITIVE block swap(block b) { return vextq_u64(b, b, 1); }

PRIMITIVE block reverse(block b)
{
    return swap(vreinterpretq_u64_u8(vrev64q_u8(vreinterpretq_u8_u64(b))));
}

PRIMITIVE block mul_low(block a, block b)
{
    return vreinterpretq_u64_p128(vmull_p64((poly64_t)vgetq_lane_u64(a, 0), (poly64_t)vgetq_lane_u64(b, 0)));
}

PRIMITIVE block mul_high(block a, block b)
{
    return vreinterpretq_u64_p128(vmull_high_p64(vreinterpretq_p64_u64(a), vreinterpretq_p64_u64(b)));
}

PRIMITIVE block mul_cross(block a, block b)
{
    block swapped = swap(b);
    return veorq_u64(mul_low(a, swapped), mul_high(a, swapped));
}

#include "row_blocks.h"

static int supported(void)
{
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_PMULL) != 0;
#else
    return 1; /* every Apple processor */
#endif
}

const row_kernel row_kernel_pmull = {
    .name = "pmull",
    .max_size = 416,
    .supported = supported,
    .init = kernel_init,
    .absorb = kernel_absorb,
    .counters = kernel_counters,
    .seal = kernel_seal,
    .open = kernel_open,
};

#endif
