// Adam of the rows that a batch looks up, and what they missed before: see adam.py.
//
// Every row is read and written once, where torch's operations gather and scatter it anew for each of them. Rows are
// shared among threads and nothing is summed over rows, so any number of threads gives the same bits.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace {

constexpr int LANES = 8;
constexpr long AHEAD = 12;  // rows between asking for one and using it
typedef __m256 vec;
typedef __m256i ivec;

inline vec all(float x) { return _mm256_set1_ps(x); }
inline vec choose(vec condition, vec yes, vec no) { return _mm256_blendv_ps(no, yes, condition); }
inline vec below(vec a, vec b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }

// exp to 2 units in the last place; 0 below -87, at most e^88.
inline vec exp8(vec x) {
    vec tiny = below(x, all(-87.0f));
    x = _mm256_min_ps(_mm256_max_ps(x, all(-87.0f)), all(88.0f));
    vec n = _mm256_round_ps(x * all(1.44269504f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    vec r = _mm256_fnmadd_ps(n, all(0.693359375f), x);  // ln 2 in two parts
    r = _mm256_fnmadd_ps(n, all(-2.12194440e-4f), r);
    vec p = all(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = _mm256_fmadd_ps(p, r, all(c));
    p = _mm256_fmadd_ps(p, r * r, r + all(1.0f));
    ivec power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_andnot_ps(tiny, p * _mm256_castsi256_ps(power));
}

// exp(x) - 1 without the cancellation near 0.
inline vec expm1_8(vec x) {
    vec series = all(1.0f / 120);
    for (float c : {1.0f / 24, 1.0f / 6, 0.5f, 1.0f}) series = _mm256_fmadd_ps(series, x, all(c));
    const vec small = below(_mm256_andnot_ps(all(-0.0f), x), all(0.1f));
    return choose(small, series * x, exp8(x) - all(1.0f));
}

// log of normal positive numbers, to 2 units in the last place.
inline vec log8(vec x) {
    ivec bits = _mm256_castps_si256(x);
    vec exponent = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32(bits, 23), _mm256_set1_epi32(126)));
    vec f = _mm256_castsi256_ps(_mm256_or_si256(_mm256_and_si256(bits, _mm256_set1_epi32(0x007fffff)),
                                                _mm256_set1_epi32(0x3f000000)));  // in [0.5, 1)
    vec low = below(f, all(0.707106781f));
    exponent = exponent - _mm256_and_ps(low, all(1.0f));
    f = f + _mm256_and_ps(low, f) - all(1.0f);
    vec p = all(7.0376836292e-2f);
    for (float c : {-1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f, -1.6668057665e-1f,
                    2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f})
        p = _mm256_fmadd_ps(p, f, all(c));
    vec square = f * f;
    p = p * f * square;
    p = _mm256_fmadd_ps(exponent, all(-2.12194440e-4f), p);
    p = _mm256_fnmadd_ps(all(0.5f), square, p);
    return _mm256_fmadd_ps(exponent, all(0.693359375f), f + p);
}

// The first `count` lanes of memory; the others are read as 0 and stay unwritten. Masked stores are slow on AMD's.
struct Part {
    int count;
    explicit Part(long left) : count(static_cast<int>(std::min<long>(left, LANES))) {}
    vec load(const float* p) const {
        if (count == LANES) return _mm256_loadu_ps(p);
        return _mm256_maskload_ps(
            p, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)));
    }
    void store(float* p, vec x) const {
        if (count == LANES) return _mm256_storeu_ps(p, x);
        alignas(32) float values[LANES];
        _mm256_store_ps(values, x);
        for (int i = 0; i < count; ++i) p[i] = values[i];
    }
};

inline void fetch(const float* row, long dim) {
    for (long d = 0; d < dim; d += 16) __builtin_prefetch(row + d, 1);
    __builtin_prefetch(row + dim - 1, 1);
}

struct Table {
    float *w, *m, *v;
    long dim;
    void fetch_row(int64_t row) const {
        for (float* of : {w, m, v}) fetch(of + row * dim, dim);
    }
};

}  // namespace

extern "C" {

struct Rule {
    double lr, l2, beta1, beta2, eps;
};

// Numbers the distinct rows in the order of their first occurrence. `last` is read, serves as scratch memory (a row
// that was met holds minus its number, less 1), and holds `step` for every row of the lookup in the end.
// Returns how many are distinct, or -1 - i when rows[i] is none of the table's; nothing is changed then.
long adam_distinct(const int64_t* rows, long count, int32_t* last, long table_rows, int32_t step, int64_t* distinct,
                   int64_t* inverse, int32_t* last_distinct) {
    for (long i = 0; i < count; ++i)
        if (rows[i] < 0 || rows[i] >= table_rows) return -1 - i;
    long found = 0;
    for (long i = 0; i < count; ++i) {
        if (i + 32 < count) __builtin_prefetch(last + rows[i + 32], 1);
        int32_t& at = last[rows[i]];
        if (at >= 0) {
            distinct[found] = rows[i];
            last_distinct[found] = at;
            at = static_cast<int32_t>(-1 - found++);
        }
        inverse[i] = -1 - static_cast<int64_t>(at);
    }
    for (long i = 0; i < found; ++i) {
        if (i + 32 < found) __builtin_prefetch(last + distinct[i + 32], 1);
        last[distinct[i]] = step;
    }
    return found;
}

// What rows [count] missed since their steps `last`: the formulas of catch_up() in training/adam_rows.py.
void adam_catch_up(float* w, float* m, float* v, long dim, const int64_t* rows, const int32_t* last, long count,
                   int32_t step, Rule rule) {
    const Table table{w, m, v, dim};
    const float log1 = std::log(rule.beta1), log2 = std::log(rule.beta2);
    const float log_g = -0.5 * std::log(rule.beta2);
    const vec per_growth = all(1 / std::expm1(log_g)), one = all(1), zero = all(0), sign = all(-0.0f);
    const long blocks = (count + LANES - 1) / LANES;
#pragma omp parallel for schedule(static)
    for (long block = 0; block < blocks; ++block) {
        // What depends on a row alone, a lane a row.
        alignas(32) float skipped[LANES] = {}, since[LANES];
        std::fill_n(since, LANES, 1.0f);
        const long begin = block * LANES, rows_here = std::min<long>(LANES, count - begin);
        for (long j = 0; j < rows_here; ++j) {
            skipped[j] = static_cast<float>(step - last[begin + j]);
            since[j] = static_cast<float>(std::max(last[begin + j], 1));
        }
        alignas(32) float decay1[LANES], decay2[LANES], tail[LANES], debias[LANES], most[LANES], most_less_1[LANES];
        const vec k = _mm256_load_ps(skipped), t = _mm256_load_ps(since);
        const vec rate = all(rule.lr * rule.beta1 / (1 - rule.beta1));
        _mm256_store_ps(decay1, exp8(k * all(log1)));
        _mm256_store_ps(decay2, exp8(k * all(log2)));
        _mm256_store_ps(tail, rate * expm1_8(k * all(log1)) / expm1_8(t * all(log1)));
        _mm256_store_ps(debias, one / _mm256_sqrt_ps(zero - expm1_8(t * all(log2))));
        _mm256_store_ps(most, exp8(k * all(log_g)));
        _mm256_store_ps(most_less_1, expm1_8(k * all(log_g)));
        for (long j = 0; j < rows_here; ++j) {
            const long i = begin + j;
            if (i + AHEAD < count) table.fetch_row(rows[i + AHEAD]);
            if (skipped[j] == 0) continue;
            for (long d = 0; d < dim; d += LANES) {
                const long at = rows[i] * dim + d;
                const Part part(dim - d);
                vec weight = part.load(w + at), mean = part.load(m + at), square = part.load(v + at);
                const vec s = _mm256_fmadd_ps(_mm256_sqrt_ps(square), all(debias[j]), all(rule.eps));
                weight = weight - mean * all(tail[j]) / s;
                if (rule.l2 != 0) {
                    // y = g^(steps before L2's pull is the learning rate): 1 where it is from the start.
                    vec magnitude = _mm256_andnot_ps(sign, weight);
                    const vec pull = all(rule.l2) / s, limit = all(most[j]);
                    const vec y = _mm256_max_ps(one, _mm256_min_ps(one / (magnitude * pull), limit));
                    const vec inside = below(y, limit);
                    const vec grown = choose(inside, y - one, all(most_less_1[j]));
                    magnitude = magnitude * exp8(grown * per_growth * pull * all(-rule.lr));
                    if (_mm256_movemask_ps(inside)) {
                        const vec after = _mm256_max_ps(zero, all(skipped[j]) - log8(y) / all(log_g));
                        magnitude = choose(inside, magnitude - after * all(rule.lr), magnitude);
                    }
                    weight = _mm256_or_ps(_mm256_max_ps(zero, magnitude), _mm256_and_ps(sign, weight));
                }
                part.store(w + at, weight);
                part.store(m + at, mean * all(decay1[j]));
                part.store(v + at, square * all(decay2[j]));
            }
        }
    }
}

// Kingma & Ba's algorithm 1 with coupled L2 on rows [count] of gradient grad [count, dim], step `step` being their last
// from now on.
void adam_update(float* w, float* m, float* v, int32_t* last, long dim, const int64_t* rows, const float* grad,
                 long count, int32_t step, Rule rule) {
    const Table table{w, m, v, dim};
    const float rate = rule.lr / (1 - std::pow(rule.beta1, step));
    const float debias = 1 / std::sqrt(1 - std::pow(rule.beta2, step));
    const vec to1 = all(1 - rule.beta1), keep2 = all(rule.beta2), to2 = all(1 - rule.beta2);
#pragma omp parallel for schedule(static)
    for (long i = 0; i < count; ++i) {
        if (i + AHEAD < count) {
            table.fetch_row(rows[i + AHEAD]);
            __builtin_prefetch(last + rows[i + AHEAD], 1);
        }
        last[rows[i]] = step;
        for (long d = 0; d < dim; d += LANES) {
            const long at = rows[i] * dim + d;
            const Part part(dim - d);
            vec weight = part.load(w + at), mean = part.load(m + at), square = part.load(v + at);
            const vec g = _mm256_fmadd_ps(weight, all(rule.l2), part.load(grad + i * dim + d));
            mean = _mm256_fmadd_ps(to1, g - mean, mean);
            square = _mm256_fmadd_ps(to2 * g, g, keep2 * square);
            const vec s = _mm256_fmadd_ps(_mm256_sqrt_ps(square), all(debias), all(rule.eps));
            part.store(w + at, _mm256_fnmadd_ps(all(rate), mean / s, weight));
            part.store(m + at, mean);
            part.store(v + at, square);
        }
    }
}

}  // extern "C"
