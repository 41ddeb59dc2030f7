// When to come back after a connection broke. Pure.

const FIRST_S = 1;
const MOST_S = 30;
const NORMAL = 1000;

/** Seconds before the try after `failures` ones that failed; `chance` from 0 to 1 keeps many from coming at once. */
export function delay(failures, chance) {
  return Math.min(MOST_S, FIRST_S * 2 ** failures) * (0.5 + chance / 2);
}

/** Whether to come back after this close code; no close frame is 1006, and codes that are not known are like 1011. */
export const comesBack = (code) => code !== NORMAL;
