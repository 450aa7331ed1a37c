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

// A row of training/adam_history.py: sums over the steps until this one, and its bias correction.
struct Sums {
    double rates, pull, tail, bias;
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
                   const Sums* history, int32_t step, Rule rule) {
    const Table table{w, m, v, dim};
    const float log1 = std::log(rule.beta1), log2 = std::log(rule.beta2);
    const float log_g = -0.5 * std::log(rule.beta2);
    const Sums now = history[step];
    const vec zero = all(0), sign = all(-0.0f), l2 = all(rule.l2), saturation = all(0.35f), third = all(rule.l2 * rule.l2 / 3);
    const long blocks = (count + LANES - 1) / LANES;
#pragma omp parallel for schedule(static)
    for (long block = 0; block < blocks; ++block) {
        // What depends on a row alone, a lane a row.
        alignas(32) float skipped[LANES] = {}, rates[LANES], pulled[LANES], tail[LANES], eps_bias[LANES];
        std::fill_n(rates, LANES, 1.0f);
        std::fill_n(pulled, LANES, 1.0f);
        const long begin = block * LANES, rows_here = std::min<long>(LANES, count - begin);
        for (long j = 0; j < rows_here; ++j) {
            const int32_t since = last[begin + j];
            const Sums& then = history[since];
            skipped[j] = static_cast<float>(step - since);
            rates[j] = static_cast<float>(now.rates - then.rates);
            pulled[j] = static_cast<float>(now.pull - then.pull);
            tail[j] = static_cast<float>(then.tail);
            eps_bias[j] = static_cast<float>(rule.eps * then.bias);
        }
        alignas(32) float decay1[LANES], decay2[LANES], regrown[LANES], per_pull[LANES], eps_rate[LANES];
        const vec k = _mm256_load_ps(skipped);
        _mm256_store_ps(decay1, exp8(k * all(log1)));
        _mm256_store_ps(decay2, exp8(k * all(log2)));
        _mm256_store_ps(regrown, expm1_8(k * all(log2)) * (zero - third));
        const vec growth_less_1 = expm1_8(_mm256_min_ps(k * all(log_g), all(80.0f)));
        const vec pull = _mm256_fmadd_ps(growth_less_1, all(now.pull), _mm256_load_ps(pulled));
        _mm256_store_ps(per_pull, all(1.0f) / pull);
        _mm256_store_ps(eps_rate, all(rule.eps) / _mm256_load_ps(rates));
        for (long j = 0; j < rows_here; ++j) {
            const long i = begin + j;
            if (i + AHEAD < count) table.fetch_row(rows[i + AHEAD]);
            if (skipped[j] == 0) continue;
            for (long d = 0; d < dim; d += LANES) {
                const long at = rows[i] * dim + d;
                const Part part(dim - d);
                vec weight = part.load(w + at), mean = part.load(m + at), square = part.load(v + at);
                const vec root = _mm256_sqrt_ps(square);
                weight = weight - mean * all(tail[j]) / (root + all(eps_bias[j]));
                square = square * all(decay2[j]);
                if (rule.l2 != 0) {
                    const vec before = _mm256_andnot_ps(sign, weight);
                    const vec exponent = l2 / _mm256_fmadd_ps(root, all(per_pull[j]), all(eps_rate[j]));
                    const vec x = all(rates[j]) / before;
                    const vec most = _mm256_fmadd_ps(saturation * x, x, x);
                    const vec after = before * exp8(zero - _mm256_min_ps(exponent, most));
                    weight = _mm256_or_ps(after, _mm256_and_ps(sign, weight));
                    const vec sum = before + after;
                    square = _mm256_fmadd_ps(_mm256_fmsub_ps(sum, sum, before * after), all(regrown[j]), square);
                }
                part.store(w + at, weight);
                part.store(m + at, mean * all(decay1[j]));
                part.store(v + at, square);
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
