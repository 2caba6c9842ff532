// Keeps the page up to date: fetches it again, and takes over the parts with data-live that have changed.
'use strict';

const PERIOD = 2000; // Milliseconds.

// Writes times as the user is used to.
function localTimes(part) {
  for (const time of part.querySelectorAll('time')) {
    const at = new Date(time.dateTime);
    if (!isNaN(at)) {
      time.textContent = at.toLocaleString(undefined, { dateStyle: 'short', timeStyle: 'medium' });
      time.title = time.dateTime;
    }
  }
}

// Takes over a part, unless the user is in it.
function take(now, next) {
  if (next && next.innerHTML !== now.innerHTML && !now.contains(document.activeElement)) {
    now.replaceChildren(...next.childNodes);
  }
}

function takeAll(fresh) {
  localTimes(fresh);
  for (const rows of document.querySelectorAll('[data-rows]')) {
    const next = fresh.getElementById(rows.id);
    const ids = (of) => Array.from(of.children, (row) => row.id).join('\n');
    if (next && ids(next) !== ids(rows)) {
      take(rows, next);
    }
  }
  for (const part of document.querySelectorAll('[data-live]')) {
    take(part, fresh.getElementById(part.id));
  }
}

async function refresh() {
  if (document.hidden) {
    setTimeout(refresh, PERIOD);
    return;
  }
  try {
    const answer = await fetch(location.href, { headers: { 'x-live': '1' }, cache: 'no-store' });
    document.body.classList.remove('stale');
    if (answer.status === 401 || answer.status === 404) {
      // The login has ended, or the tunnel is gone.
      location.reload();
      return;
    }
    if (answer.ok) {
      takeAll(new DOMParser().parseFromString(await answer.text(), 'text/html'));
    }
  } catch {
    // The gateway cannot be reached.
    document.body.classList.add('stale');
  }
  setTimeout(refresh, PERIOD);
}

localTimes(document);
if (document.querySelector('[data-live]')) {
  setTimeout(refresh, PERIOD);
}

for (const button of document.querySelectorAll('[data-copy]')) {
  // Browsers have it only on secure pages.
  if (navigator.clipboard) {
    button.hidden = false;
    button.addEventListener('click', async () => {
      await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).value);
      button.textContent = 'Copied';
    });
  }
}
